package agent

import (
	"fmt"
	"regexp"
	"strings"
)

var policyForm = regexp.MustCompile(`^policy ([0-9A-Za-z]{1,11})(?: (.+))?$`)

// policyWords splits "policy POL00000007 1-5 0800-2000 +08", which stands
// behind the reason in Table 13, into the policy's id and its data. Both are
// empty when text is something else.
func policyWords(text string) (id, data string) {
	m := policyForm.FindStringSubmatch(text)
	if m == nil {
		return "", ""
	}
	return m[1], m[2]
}

var (
	hoursForm = regexp.MustCompile(`^(\*|[1-7][1-7,-]*) ((?:\d{4}-\d{4},?)+) (Z|[+-]\d{2}(?:\d{2})?)$`)
	daysEN    = strings.NewReplacer("1", "Mon", "2", "Tue", "3", "Wed", "4", "Thu", "5", "Fri", "6", "Sat", "7", "Sun", ",", ", ")
	daysZH    = strings.NewReplacer("1", "周一", "2", "周二", "3", "周三", "4", "周四", "5", "周五", "6", "周六", "7", "周日", "-", "至", ",", "、")
	clockForm = regexp.MustCompile(`(\d{2})(\d{2})`)
)

// hoursWords words the data of a policy of type time, such as
// "1-5 0800-2000 +08". ok is false when data has another form.
func hoursWords(data string) (w Words, ok bool) {
	m := hoursForm.FindStringSubmatch(data)
	if m == nil {
		return w, false
	}
	hours := clockForm.ReplaceAllString(m[2], "$1:$2")
	zone := "UTC"
	if m[3] != "Z" {
		zone += m[3][:3]
		if len(m[3]) == 5 {
			zone += ":" + m[3][3:]
		}
	}
	w.EN = fmt.Sprintf("outside %s", strings.ReplaceAll(hours, ",", ", "))
	w.ZH = strings.ReplaceAll(hours, ",", "、")
	if m[1] != "*" {
		w.EN += " " + daysEN.Replace(m[1])
		w.ZH = daysZH.Replace(m[1]) + " " + w.ZH
	}
	w.EN += " " + zone
	w.ZH = "不在 " + w.ZH + "（" + zone + "）之内"
	return w, true
}
