# paper: top-1 79.4
_base_ = './deit-s_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.FrozenTokenizer')))
