_base_ = './deit-nano_1xb128-20e_cifar10.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer', placement='branch')))
