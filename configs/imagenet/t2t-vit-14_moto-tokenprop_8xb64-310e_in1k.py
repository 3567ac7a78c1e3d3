# paper: top-1 82.8
_base_ = './t2t-vit-14_8xb64-310e_in1k.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.T2TTokenizer', moto=dict()), token_prop=dict()))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
