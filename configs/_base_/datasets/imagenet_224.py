# ImageNet-1k in folders or tar files, train and val. The environment variable IMAGENET_ROOT names another folder.
data_root = '{{$IMAGENET_ROOT:data/imagenet}}'
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='mmtok.stack_images'),
    sampler=dict(type='mmtok.EpochSampler'),
    dataset=dict(
        type='mmtok.ImageDataset',
        data_root=data_root,
        split='train',
        transform=dict(
            input_size=224, is_training=True, auto_augment='rand-m9-mstd0.5-inc1', interpolation='bicubic')))
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='mmtok.stack_images'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmtok.ImageDataset',
        data_root=data_root,
        split='val',
        transform=dict(input_size=224, interpolation='bicubic', crop_pct=0.875)))
test_dataloader = val_dataloader
