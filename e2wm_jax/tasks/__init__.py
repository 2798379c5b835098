"""Episodes to text: training and evaluation sets in E2WM's formats, pure functions of episodes and a seed."""
