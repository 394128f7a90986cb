"""What MLflow's own pages say of dankai's experiment and models."""

NOTE = "mlflow.note.content"  # what MLflow shows as a description, in Markdown
AS_TRAINING = "workflowType=machine_learning"  # without it a link opens among the pages for language models
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else MLflow opens its pages for language models
    NOTE: "A run for each rollout, inside it one for each stage, inside that its trainings and its gate. "
    "What to search for: infra/operators.md.",
}
ABOUT_MODEL = """Models of the dataset **{0}**, each version with its model card.

| alias | means |
|---|---|
| champion | live |
| challenger | on trial, or waiting for approval |
| last_green | where `dankai rollback {0}` leads |
| pilot, edge | live in those stages |

Aliases are a view; the release log is the truth: `dankai history {0}`."""
