# A UperNet that 2 CPU cores can train: DeiT of width 128 and depth 4 with 8x8 patches, heads of 64 channels.
# Users set img_size, data_preprocessor.size and the numbers of classes.
_base_ = './upernet_deit-s.py'
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=128, depth=4, num_heads=4),
        patch_size=8,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=None),
    neck=dict(in_channels=[128] * 4, out_channels=64, scales=[2, 1, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[64] * 4, channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=64, norm_cfg=norm_cfg))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
