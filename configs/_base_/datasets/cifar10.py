# CIFAR-10 as an image folder, or any other of small images: the environment variable CIFAR10_ROOT names it
data_root = '{{$CIFAR10_ROOT:data/cifar10}}'
img_size = 32
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='mmtok.stack_images'),
    sampler=dict(type='mmtok.EpochSampler'),
    dataset=dict(
        type='mmtok.ImageDataset',
        data_root=data_root,
        split='train',
        transform=dict(input_size=img_size, is_training=True, scale=(0.7, 1.0), color_jitter=None,
                       interpolation='bicubic')))
val_dataloader = dict(
    batch_size=250,
    num_workers=1,
    persistent_workers=True,
    collate_fn=dict(type='mmtok.stack_images'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmtok.ImageDataset',
        data_root=data_root,
        split='val',
        transform=dict(input_size=img_size, interpolation='bicubic', crop_pct=1.0)))
test_dataloader = val_dataloader
