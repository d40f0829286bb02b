"""A call of JointDiTPipeline: its inputs, text, steps, solvers and output."""
