# no row of the paper
_base_ = './pvt-m_8xb128-300e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer'), token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
