package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/skyloom/skyloom/api"
)

func (s *Server) scheduleRoutes(h huma.API) {
	type listIn struct {
		IDs      string `query:"ids" doc:"numbers and ranges: 1-3,7" maxLength:"30000"`
		UserHash string `query:"user_hash" doc:"only schedules of this user; none: of all" maxLength:"200"`
	}
	op := operation("GET", "/jobs/schedules", "job-schedules", managedTag, "Schedules of managed jobs, by number, with their next and last firings", http.StatusServiceUnavailable)
	get(h, op, s, func(ctx context.Context, in *listIn) (api.JobScheduleList, error) {
		var ids []int64
		if in.IDs != "" {
			var err error
			if ids, err = api.ParseIDs(in.IDs); err != nil {
				return api.JobScheduleList{}, failure(api.ErrInvalid, "", "ids: %s", err)
			}
			if len(ids) > 1000 {
				return api.JobScheduleList{}, failure(api.ErrInvalid, "", "ids: at most 1000 in one call")
			}
		}
		rows, err := s.be().Schedules(ctx, in.UserHash, ids)
		if rows == nil {
			rows = []api.JobSchedule{}
		}
		return api.JobScheduleList{Schedules: rows}, err
	})

	op = operation("POST", "/jobs/schedules", "change-job-schedules", managedTag, "Pause, resume or delete schedules of managed jobs, or have them fire", http.StatusNotFound, http.StatusServiceUnavailable)
	op.Description = "Schedules are made by POST /api/v1/jobs/launch with a schedule. Jobs that a schedule has submitted go on when it is paused or deleted. " +
		"A backfill fires for times that were due, of one schedule; one whose jobs were submitted already submits none."
	get(h, op, s, func(ctx context.Context, in *bodyIn[api.SchedulesChangeBody]) (api.SchedulesChangeReply, error) {
		if len(in.Body.IDs) == 0 {
			return api.SchedulesChangeReply{}, failure(api.ErrInvalid, "See: sky jobs schedules ls", "schedule_ids names no schedule")
		}
		return s.be().ChangeSchedules(context.WithoutCancel(ctx), in.Body)
	})
}
