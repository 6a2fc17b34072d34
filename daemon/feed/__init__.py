"""What a feed of any exchange needs: bars in order, holes filled, a bounded queue, retries."""
