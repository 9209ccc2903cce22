"""Answers of every kind that the verifier reads, and what may stand around them."""

# of every node that a tree may have (tree.py), alone and at the edges of its shape
KINDS = [
    "5", "-3", "0.5", "1,234", "x", "x_1", "\\pi", "e", "i", "\\infty", "-\\infty", "\\emptyset", "\\{\\}", "\\mathbb{R}",
    "\\mathbb{Z}", "x=3", "x=5=5", "5=6", "\\sqrt2\\approx1.41", "x<3", "1<x<2", "|x|<3", "x\\ne 2", "x\\in\\{1,2\\}",
    "x\\in\\emptyset", "x\\in\\mathbb{R}", "x\\in(0,1)", "\\{x|x>1\\}", "\\{x\\in\\mathbb{R}:x<2\\}", "\\{5|x>1\\}",
    "\\{(x,y)|x>1\\}", "\\{\\emptyset|x>1\\}", "\\{x|\\emptyset\\}", "(1,2)", "[1,2]", "(1,\\infty)", "]1,2[", "(x,y)=(1,2)",
    "x=1,y=2", "1,2,3", "1 \\text{ or } 2", "\\{1,2\\}", "\\{\\infty\\}", "\\{\\emptyset\\}", "\\infty,\\emptyset", "\\pm 2",
    "\\pm\\infty", "[0,1]\\cup[2,3]", "(0,1)\\cap(0,2)", "\\mathbb{R}\\setminus\\{0\\}", "\\{1\\}\\cup\\infty", "\\mathbb{R}-\\infty",
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}\\infty\\end{pmatrix}", "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}",
    "3:4", "\\infty:1", "12:30", "6:00 pm", "52_8", "5\\text{ cm}", "\\emptyset\\text{ cm}", "5\\%", "\\infty\\%", "35 percent",
    "45^\\circ", "\\text{yes}", "no", "\\text{a}=\\text{b}", "\\text{base}\\times\\text{height}", "(B)", "C", "f(x)=x^2", "f(2)",
    "x^2+1", "\\frac{x}{2}", "\\sqrt[3]{2}", "(-8)^{1/3}", "5!", "\\binom52", "\\lfloor x\\rfloor", "\\sum_{k=1}^{3}k", "3\\pmod 7",
    "2 \\frac13", "\\$5", "all real numbers", "(1,234)", "x=\\infty", "\\infty\\in x", "1\\in\\{1\\}", "\\infty^\\infty",
    "2x-1<5", "0x<5", "|x-1|<10^{400}", "x^2<9", "\\begin{vmatrix}x&1\\\\2&i\\end{vmatrix}", "\\overline{3+4i}", "seven", "€5", "5%%",
]  # fmt: skip
WRAPS = [
    "{}",
    "x={}",
    "({},1)",
    "\\{{{}\\}}",
    "{},1",
    "{} \\text{{ or }} 2",
    "-{}",
    "{}\\%",
    "x\\in {}",
    "\\{{x|{}\\}}",
]
