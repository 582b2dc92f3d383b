"""A table with picture blocks and mats, a free-flying gripper, and instructions after RT-1."""
