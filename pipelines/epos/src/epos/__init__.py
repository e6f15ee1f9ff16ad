"""A small EPOS: 6D poses of rigid objects from single colour images.

After Hodan, Barath, Matas: "EPOS: Estimating 6D Pose of Objects with Symmetries" (CVPR 2020), written in JAX.
Lengths are millimetres, angles radians, pixel centres lie on integer coordinates (OpenCV's and BOP's convention).
"""

__version__ = "0.1.0"
