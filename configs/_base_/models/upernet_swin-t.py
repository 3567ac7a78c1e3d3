# mmseg's swin-tiny-patch4-window7_upernet, its backbone from mmtok
_base_ = './upernet.py'
model = dict(
    backbone=dict(
        type='mmtok.Swin',
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_tiny_patch4_window7_224.pth')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384, in_index=2))
