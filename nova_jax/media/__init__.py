"""Videos as files: MP4 frame by frame, GIF and contact strips for notebooks.

    write_mp4("fox.mp4", chunks, metadata={"prompt": "a fox runs", "seed": "42"})
    read_metadata("fox.mp4")
    contact_strip(video, columns=8)

Videos are uint8 (f, h, w, 3), 0 to 255.
"""

from nova_jax.media.mp4 import Written, join_mp4, read_metadata, write_mp4
from nova_jax.media.strip import contact_strip, save_gif

__all__ = ["Written", "contact_strip", "join_mp4", "read_metadata", "save_gif", "write_mp4"]
