"""The machines that a training runs on: reserved, started and watched through Prefect or Kubernetes."""
