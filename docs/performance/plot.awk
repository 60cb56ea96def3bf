# Draws the lines "bench: growth: …" of `make bench` as one SVG: a panel for each
# figure, groups from left to right.
#   make bench BENCH=Scale | awk -f docs/performance/plot.awk > docs/performance/growth.svg

/^bench: growth: / {
	line = $0
	sub(/^bench: growth: /, "", line)
	split(line, part, ": ")
	what = part[1]
	split(part[2], size, " ")
	split(part[3], value, " ")
	if (!(what in count)) order[++panels] = what
	n = ++count[what]
	groups[what, n] = size[1]
	y[what, n] = value[1]
	unit[what] = value[2]
	if (value[1] > most[what]) most[what] = value[1]
	split(part[4], reach, " ")
	target[what] = reach[1] + 0
}

function x_of(g) { return left + 46 + log(g / 10) / log(1000) * 190 }
function y_of(v) { return top + 150 - v / limit * 110 }

END {
	columns = 3
	rows = int((panels + columns - 1) / columns)
	printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"11\">\n", columns * 270 + 20, rows * 200 + 20
	print "<title>What grows with the number of groups</title>"
	print "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
	for (p = 1; p <= panels; p++) {
		what = order[p]
		left = 10 + (p - 1) % columns * 270
		top = 10 + int((p - 1) / columns) * 200
		limit = most[what] > target[what] ? most[what] : target[what]
		if (limit == 0) limit = 1
		printf "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">%s, %s</text>\n", left + 10, top + 16, what, unit[what]
		printf "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#999\"/>\n", left + 40, top + 30, top + 150, left + 250
		printf "<path d=\"M%d %.1fH%d\" stroke=\"#b35900\" stroke-dasharray=\"4 3\"/>\n", left + 40, y_of(target[what]), left + 250
		printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"#b35900\">%g</text>\n", left + 36, y_of(target[what]) + 4, target[what]
		line = ""
		for (n = 1; n <= count[what]; n++) {
			x = x_of(groups[what, n])
			v = y_of(y[what, n])
			line = line sprintf("%s%.1f %.1f", n == 1 ? "M" : "L", x, v)
			printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"#1f5fa8\"/>\n", x, v
			printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.3g</text>\n", x, v - 7, y[what, n]
			printf "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#666\">%d</text>\n", x, top + 165, groups[what, n]
		}
		printf "<path d=\"%s\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\"/>\n", line
	}
	print "</svg>"
}
