"""The paper broker: accounts, orders, matching, exit orders, margin and what they cost."""
