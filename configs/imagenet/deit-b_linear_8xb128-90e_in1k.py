# No row of the paper, whose 69.6 probes a trunk of MoCo v3
_base_ = './deit-s_linear_8xb128-90e_in1k.py'
model = dict(backbone=dict(
    arch='base', init_cfg=dict(checkpoint='work_dirs/deit-b_8xb128-300e_in1k/epoch_300.pth')))
