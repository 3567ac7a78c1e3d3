# paper: top-1 82.9
_base_ = './deit-b_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
