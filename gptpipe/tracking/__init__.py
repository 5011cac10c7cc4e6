"""MLflow: runs, registry, what decides which model serves, and the pictures.

May import: train, evaluation, generation, launch and what is below them. Only here is mlflow imported.
"""
