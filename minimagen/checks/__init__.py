"""Checks of the exercises: is an answer right, and if not, which idea in it is wrong?

    from minimagen.checks import lesson_01 as check
    check.noising(my_function)     one line if it is right; else what is wrong and where to look
    check.progress()               3 of 5 done

One module for each lesson, one function for each exercise. ``python -m minimagen.checks FOLDER``
tells how far somebody is with all of them.
"""
