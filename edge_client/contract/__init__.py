"""What pipeline and device agree on: documents, names, messages and preprocessing.

Imports neither TensorFlow nor Luigi nor boto3; `tests/test_architecture.py` holds this.
"""
