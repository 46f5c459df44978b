"""Work that resumes and is metered: the RUN folder, its stages, their loops, what they cost."""
