# paper: top-1 82.7
_base_ = './pvtv2-b2_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
