// 2^60 different types: more than there is time and memory for.
template <int Depth, unsigned long Path> struct Tree {
    static constexpr unsigned long value = Tree<Depth - 1, Path * 2>::value + Tree<Depth - 1, Path * 2 + 1>::value;
};
template <unsigned long Path> struct Tree<0, Path> {
    static constexpr unsigned long value = Path;
};

int main() { return Tree<60, 1>::value & 1; }
