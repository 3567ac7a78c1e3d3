# paper: top-1 76.0; it does not give SGD's learning rate and decay, these are ours
_base_ = './deit-s_sgd_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.FrozenTokenizer')))
