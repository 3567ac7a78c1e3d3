# paper: mIoU 42.9
_base_ = './upernet_deit-s_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.FrozenTokenizer'),
        init_cfg=dict(checkpoint='work_dirs/deit-s_frozen_8xb128-300e_in1k/epoch_300.pth')))
