# DeiT's regularisation, which the other authors share; a model adds its backbone
model = dict(
    type='mmtok.ImageClassifier',
    num_classes=1000,
    label_smoothing=0.1,
    data_preprocessor=dict(
        type='mmtok.ImagePreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        erase=dict(probability=0.25, mode='pixel'),
        mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0)),
    backbone=dict(drop_path_rate=0.1, mask_padding=False))  # no image of a batch is padded
