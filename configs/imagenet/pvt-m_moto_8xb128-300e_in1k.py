# paper: top-1 82.1
_base_ = './pvt-m_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
