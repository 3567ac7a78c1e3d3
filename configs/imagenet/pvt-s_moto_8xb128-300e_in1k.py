# paper: top-1 81.0
_base_ = './pvt-s_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
