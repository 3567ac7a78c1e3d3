# paper: top-1 81.9
_base_ = './t2t-vit-14_8xb64-310e_in1k.py'
model = dict(backbone=dict(arch='19'))
optim_wrapper = dict(optimizer=dict(weight_decay=0.065))
