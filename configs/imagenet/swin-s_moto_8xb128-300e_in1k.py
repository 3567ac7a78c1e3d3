# paper: top-1 83.7
_base_ = './swin-s_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
