"""RT-2's evaluation suites (arXiv 2307.15818, section 4 and appendix F) on the table-top world."""
