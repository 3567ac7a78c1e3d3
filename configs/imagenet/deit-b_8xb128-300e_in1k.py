# paper: top-1 81.8
_base_ = './deit-s_8xb128-300e_in1k.py'
model = dict(backbone=dict(arch='base'))
