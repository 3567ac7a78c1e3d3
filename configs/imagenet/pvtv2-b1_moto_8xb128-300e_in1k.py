# no row of the paper; its detectors start from this trunk
_base_ = './pvtv2-b1_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer')))
