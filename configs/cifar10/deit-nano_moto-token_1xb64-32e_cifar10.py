_base_ = './deit-nano_1xb64-32e_cifar10.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer', placement='token')))
