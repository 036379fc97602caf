"""The scheduler: reconciles listeners with configurations, and calls with what is due."""
