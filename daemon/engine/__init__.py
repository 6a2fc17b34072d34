"""The engine: pure, from one event to the step that holds all that it caused."""
