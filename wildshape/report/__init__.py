"""What people look at: the HTML report, galleries and plots."""
