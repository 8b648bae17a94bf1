"""What every health check shares: declaration, context, runner, deadlines, reports."""
