"""What tests read of spans, metrics and exports."""
