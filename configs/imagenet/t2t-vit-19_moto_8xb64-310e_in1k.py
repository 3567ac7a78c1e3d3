# no row of the paper
_base_ = './t2t-vit-19_8xb64-310e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.T2TTokenizer', moto=dict())))
