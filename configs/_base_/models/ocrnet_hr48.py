# mmseg's OCRNet with HRNet-w48
norm_cfg = dict(type='SyncBN', requires_grad=True)
channels = [48, 96, 192, 384]
head = dict(
    in_channels=channels,
    in_index=(0, 1, 2, 3),
    input_transform='resize_concat',
    dropout_ratio=-1,
    num_classes=150,
    norm_cfg=norm_cfg,
    align_corners=False)
cross_entropy = dict(type='CrossEntropyLoss', use_sigmoid=False)
model = dict(
    type='CascadeEncoderDecoder',
    num_stages=2,
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        size=(512, 512),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255),
    backbone=dict(
        type='HRNet',
        norm_cfg=norm_cfg,
        norm_eval=False,
        extra=dict(
            stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(4, ), num_channels=(64, )),
            stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(4, ) * 2, num_channels=channels[:2]),
            stage3=dict(num_modules=4, num_branches=3, block='BASIC', num_blocks=(4, ) * 3, num_channels=channels[:3]),
            stage4=dict(num_modules=3, num_branches=4, block='BASIC', num_blocks=(4, ) * 4, num_channels=channels)),
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://msra/hrnetv2_w48')),
    decode_head=[
        dict(
            type='FCNHead',
            channels=sum(channels),
            kernel_size=1,
            num_convs=1,
            concat_input=False,
            loss_decode=dict(loss_weight=0.4, **cross_entropy),
            **head),
        dict(type='OCRHead', channels=512, ocr_channels=256, loss_decode=dict(loss_weight=1.0, **cross_entropy),
             **head),
    ],
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
