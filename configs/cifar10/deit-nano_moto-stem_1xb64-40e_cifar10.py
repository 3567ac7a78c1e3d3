_base_ = './deit-nano_1xb64-40e_cifar10.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer', placement='stem')))
