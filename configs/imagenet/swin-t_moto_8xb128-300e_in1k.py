# paper: top-1 82.2
_base_ = './swin-t_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
