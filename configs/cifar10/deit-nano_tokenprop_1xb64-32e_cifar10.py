_base_ = './deit-nano_1xb64-32e_cifar10.py'
model = dict(backbone=dict(token_prop=dict(output_scale=16)))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
