# mmseg's vit_deit-s16_mln_upernet, its backbone from mmtok
_base_ = './upernet.py'
model = dict(
    backbone=dict(
        type='mmtok.DeiT',
        arch='small',
        img_size=512,
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth')),
    neck=dict(type='MultiLevelNeck', in_channels=[384] * 4, out_channels=384, scales=[4, 2, 1, 0.5]),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384, in_index=3))
