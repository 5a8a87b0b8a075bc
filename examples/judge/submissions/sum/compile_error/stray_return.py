# Can be parsed, but not compiled.
print(0)
return 0
