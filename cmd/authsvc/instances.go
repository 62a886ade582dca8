package main

import "strconv"

func instanceCommands() []command {
	return []command{{group: "instances", about: "list the servers of this installation that were seen within the last hour, the oldest start first", setup: none(instancesList)}}
}

func instancesList(r *call) error {
	all, err := r.admin.Instances(r.ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, i := range all {
		state, behind := "silent", ""
		if i.Live {
			state = "live"
		}
		if i.Behind != nil {
			behind = strconv.FormatInt(*i.Behind, 10)
		}
		rows = append(rows, []string{i.ID, i.Host, i.Version, state, when(i.StartedAt), when(i.SeenAt), behind, i.Lag, i.ClockSkew})
	}
	return r.list(all, false, "ID HOST VERSION STATE SINCE SEEN BEHIND LAG SKEW", rows)
}
