"""One runnable file a stage: nano (an untrained model), pretrain (its vision tower), generate (D_traj), sft, star."""
